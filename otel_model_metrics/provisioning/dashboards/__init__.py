"""
Dashboards: four pages, one file each, that follow from the catalogue.

`queries.py` says what is asked, `style.py` how it looks, and the pages what is shown where.
"""

# The uids of the pages, which never change: links and alerts lead there.
OVERVIEW, MODEL_PAGE, SEGMENTS, GROUND_TRUTH = (
    f"ml-quality-{page}" for page in ("overview", "model", "segments", "ground-truth")
)

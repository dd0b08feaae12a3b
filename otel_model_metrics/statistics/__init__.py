"""
Mathematics: numpy in, arrays out. Nothing here knows of monitors, windows or OpenTelemetry.
"""

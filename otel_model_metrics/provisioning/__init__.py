"""
The generating wing: queries, rules and alerts for the user's own tools, made from the catalogue.

Nothing in here runs inside a service, and nothing of the running wing knows it.
"""

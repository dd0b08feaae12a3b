"""
A way in for labels over HTTP: a small ASGI application and its WSGI twin, for a service to mount.

Reads down: `doors` are the two applications, `endpoint` is what both open to, `body` reads what is sent, and `openapi`
says what is promised. Nothing but the standard library is needed.
"""

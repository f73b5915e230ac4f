"""`make crash`: a server is killed again and again under load; then its books are audited.

A tool for developers, beside the program and no part of it.
"""

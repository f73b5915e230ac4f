"""Every SQL statement of Turnkeeper, once, and what is done with them; names no database.

A transaction is a generator: it yields statements with their arguments, is sent the rows back,
and returns its result. It does no I/O and has no side effect, so a driver may run it again
after a conflict. Its first statement locks the session's row, so that what is atomic under
SQLite's one writer is atomic under READ COMMITTED too.
"""

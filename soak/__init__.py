"""`make soak`: a server under mixed load for minutes or hours; then nothing of it may have grown.

A tool for developers, beside the program and no part of it.
"""

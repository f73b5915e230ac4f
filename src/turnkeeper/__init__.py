"""Turnkeeper: a self-hosted chat-session server that never loses a turn and never doubles one."""

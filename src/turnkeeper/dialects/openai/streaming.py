"""How streams of this dialect differ from those of the others."""

# One line end: after a blank line some of OpenAI's own clients look for an event, and fail on none.
KEEP_ALIVE = b": ping\n"

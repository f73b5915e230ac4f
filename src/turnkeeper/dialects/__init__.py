"""One module for each wire format: decode, act, encode; and its table of statuses."""

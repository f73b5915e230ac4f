"""Turnkeeper against the floor and the tutorial's Flask program, in one run: `python -m bench`.

Three servers take turns on one core; the load generator and the model server have the other.

- **The floor** (`floor.py`): what a turn costs when nothing is kept.
- **Flask** (`flask_program.py`): the program the tutorial leads to, under gunicorn with 32 threads.
- **Turnkeeper**: `turnkeeper serve` with a SQLite file in the checkout, thus on a real disk.

Every measurement is repeated in rounds, the servers in turn within each round, and the figure is
the median; slow streams and kept sessions are measured once, each being a sample. What a server
spends is read from the kernel's CPU clock of its processes, all threads and workers included, to
the nanosecond; so a slow load generator cannot flatter anyone. It could only lower the turns per
second, so those are shown with the share of its core that the server used: near 100 % the server
was the limit. Every answer is compared with what the model server says when asked directly, so
nobody is fast by failing.

The history of a durable turn: a session takes seven turns, then its client starts the next
session. The turns of a session see 0, 2, … 12 earlier messages, six on average, all of them are
counted, and one turn in seven pays for making a session. So every server sees the same mix
however fast it is, and no history grows with the speed of the server that keeps it. The clients
start at different points of the seven.

Upstream, Turnkeeper always asks for a stream. The floor and Flask do so only for a streamed
answer; that part of the difference counts against Turnkeeper.
"""

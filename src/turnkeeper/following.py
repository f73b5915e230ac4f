"""Following a session: every turn of it in order, whoever begins it.

Like a follower of one reply, someone here holds nothing but a place: a turn's number, and a
position in its reply. What happens elsewhere is found by looking again when nothing was heard for
a while.
"""

import asyncio
from collections.abc import Awaitable, Callable

from turnkeeper.contracts import NextTurn
from turnkeeper.domain import TurnRef
from turnkeeper.errors import SessionNotFound, StoreUnavailable, TurnNotFound
from turnkeeper.events import TurnEvent
from turnkeeper.reply import Follower, Reply


class SessionFollower:
    """Someone's place in a session. Used by one task; closed by whoever opened it.

    It is `finished` when the session is gone, or cannot be read just now, or after `end` when the
    turn that is followed is over.
    """

    def __init__(
        self,
        session_id: str,
        find_next: Callable[[int], Awaitable[NextTurn]],
        follow_turn: Callable[[TurnRef], Awaitable[Reply]],
        leave: Callable[["SessionFollower"], None],
    ) -> None:
        """`find_next` looks for the turn that follows a number."""
        self._session_id = session_id
        self._find_next = find_next
        self._follow_turn = follow_turn
        self._leave = leave
        self._seen = 0  # the number of the last turn that is over for it
        self._resumed: tuple[int, int] | None = None  # a turn, and how much of it is known
        self._follower: Follower | None = None
        self._news = asyncio.Event()
        self._ending = False
        self.finished = False

    def start_behind(self, number: int) -> None:
        """Begin with the turn that follows this one."""
        self._seen = number

    def resume(self, number: int, after: int) -> None:
        """Begin in the middle of a turn's reply, if the turn is still there."""
        self._seen, self._resumed = number - 1, (number, after)

    async def next(self) -> list[TurnEvent]:
        """What happened since the last call, in order, once there is anything.

        Empty when `nudge` was called and nothing had happened, or after the end.
        """
        follower = self._follower or await self._open_next()
        if follower is None:
            return []
        events = await follower.next()
        ref = follower.reply.turn.ref
        if follower.finished:
            follower.close()
            self._seen, self._follower = ref.number, None
        return [TurnEvent(ref, event) for event in events]

    async def _open_next(self) -> Follower | None:
        """A follower of the next turn, if there is one; else None, after some news."""
        if self._ending:
            self.finished = True
        if self.finished:
            return None
        self._news.clear()
        try:
            number = (await self._find_next(self._seen)).next
            if number is not None:
                reply = await self._follow_turn(TurnRef(self._session_id, number))
        except TurnNotFound:  # cleared in this moment
            return None
        except (SessionNotFound, StoreUnavailable):
            self.finished = True
            return None
        if number is None:
            await self._news.wait()
            return None
        known = self._resumed if self._resumed and self._resumed[0] == number else (number, None)
        self._follower = reply.follow(known[1])
        return self._follower

    def nudge(self) -> None:
        """Wake whoever waits in `next`."""
        self._news.set()
        if self._follower is not None:
            self._follower.nudge()

    def end(self) -> None:
        """Let whoever follows come to an end, once it has heard of the turn it follows."""
        self._ending = True
        self.nudge()

    def close(self) -> None:
        self.finished = True
        self.nudge()
        if self._follower is not None:
            self._follower.close()
        self._leave(self)

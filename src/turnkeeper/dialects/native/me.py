"""Who the caller is."""

from turnkeeper.dialects.exchange import Answer, Call, Parts, Route, encode_json


async def get_me(_parts: Parts, call: Call) -> Answer:
    user = {"username": call.caller, "role": "admin" if call.is_admin else "user"}
    return Answer(200, encode_json({"user": user}))


ROUTES = (Route("GET", "/api/me", get_me, "Who you are"),)

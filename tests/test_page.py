"""The chat page in a real browser, talking to a real server."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Request, Route, async_playwright, expect

from rig.model_server import ModelServer, Plan
from rig.server import Server
from tests.test_access import PASSWORD, Site, turnkeeper

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LONG = "Did Weizenbaum write this?"  # ELIZA's longest answer: time enough to break into it

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser (Debian package: chromium)"
)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS + sandbox
        )
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser, server_url: str) -> AsyncIterator[Page]:
    """The page as a newcomer sees it; it must not complain, and must talk to its server alone."""
    page = await browser.new_page()
    complaints: list[str] = []
    strangers: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: strangers.extend(_stranger(request, server_url)))
    await page.goto(server_url)
    yield page
    assert complaints == []
    assert strangers == []


def _stranger(request: Request, url: str) -> list[str]:
    ours = request.url.startswith((f"{url}/", "data:"))
    return [] if ours else [request.url]


def reply(page: Page):
    """The newest reply."""
    return page.locator(".reply").last


async def say(page: Page, message: str) -> None:
    await page.get_by_label("Your message").fill(message)
    await page.get_by_label("Your message").press("Enter")


async def ended(page: Page) -> str:
    """The text of the newest reply, once it has ended."""
    await expect(reply(page)).to_have_attribute("aria-busy", "false")
    return await reply(page).locator(".text").inner_text()


async def begun(page: Page) -> None:
    """Some words of the newest reply are there."""
    await expect(reply(page).locator(".text")).not_to_be_empty()


async def test_a_reply_grows_and_ends(page: Page):
    await expect(page.get_by_label("Your message")).to_be_focused()
    await say(page, LONG)
    await begun(page)
    early = await reply(page).locator(".text").inner_text()
    whole = await ended(page)
    assert whole.startswith(early.rstrip())
    assert len(early) < len(whole)
    assert re.match(r"Joseph Weizenbaum .*\?$", whole)
    await expect(page.get_by_label("Your message")).to_have_value("")
    await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_a_second_message_continues_the_session(page: Page, server_url: str):
    await say(page, "zebra")
    first = await ended(page)
    await say(page, "zebra")
    await expect(page.locator(".reply")).to_have_count(2)
    assert await ended(page) != first  # ELIZA repeats herself only to strangers
    assert len(await (await page.request.get(f"{server_url}/api/sessions")).json()) == 1


async def test_stop_keeps_what_was_said(page: Page):
    await say(page, LONG)
    await begun(page)
    await page.get_by_role("button", name="Stop").click()
    partial = await ended(page)
    assert partial
    assert not partial.endswith("?")
    await expect(reply(page).get_by_text("Stopped.")).to_be_visible()
    await expect(page.get_by_label("Your message")).to_be_focused()
    await say(page, "Go on")
    assert await ended(page)


async def test_clear_asks_and_then_empties_the_session(page: Page, server_url: str):
    await say(page, "Hello")
    await ended(page)
    await page.get_by_role("button", name="Clear").click()
    await page.get_by_role("button", name="Keep it").click()
    await expect(page.locator(".mine")).to_have_count(1)
    await page.get_by_role("button", name="Clear").click()
    await page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    await expect(page.locator(".mine")).to_have_count(0)
    await expect(page.get_by_text("The conversation was cleared.")).to_be_visible()
    assert await (await page.request.get(f"{server_url}/api/sessions")).json() == []


async def test_clear_in_the_middle_of_a_reply(page: Page):
    await say(page, LONG)
    await begun(page)
    await page.get_by_role("button", name="Clear").click()
    await page.get_by_role("dialog").get_by_role("button", name="Clear").click()
    await expect(page.locator(".reply")).to_have_count(0)
    await say(page, "Hello")
    assert await ended(page)


async def test_a_new_conversation_is_another_session(page: Page, server_url: str):
    await say(page, "zebra")
    first = await ended(page)
    await page.get_by_role("button", name="New conversation").click()
    await expect(page.get_by_role("heading", name="What is on your mind?")).to_be_visible()
    await say(page, "zebra")
    assert await ended(page) == first
    assert len(await (await page.request.get(f"{server_url}/api/sessions")).json()) == 2


async def test_markup_is_shown_as_text(page: Page):
    hostile = "<script>document.title='taken'</script><img src=x onerror=alert(1)>\n  two lines"
    await say(page, hostile)
    assert await page.locator(".mine .text").last.inner_text() == hostile
    await say(page, "I love <b>you</b> & <script>alert(1)</script>")
    await ended(page)
    assert await page.title() == "Turnkeeper"
    assert await page.locator("#log").locator("script, img, b").count() == 0


async def test_shift_enter_begins_a_line_and_a_blank_message_is_not_sent(page: Page):
    field = page.get_by_label("Your message")
    await say(page, "   ")
    await field.fill("one")
    await field.press("Shift+Enter")
    await field.press_sequentially("two")
    assert await field.input_value() == "one\ntwo"
    await expect(page.locator(".mine")).to_have_count(0)


async def test_the_enter_of_an_input_method_does_not_send(page: Page):
    field = page.get_by_label("Your message")
    await field.fill("にほん")
    await field.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    await expect(page.locator(".mine")).to_have_count(0)
    await expect(field).to_have_value("にほん")
    await field.dispatch_event("keydown", {"key": "Enter"})
    await expect(page.locator(".mine")).to_have_count(1)
    await ended(page)


async def test_enter_during_a_reply_keeps_what_was_typed(page: Page):
    await say(page, LONG)
    await say(page, "too early")
    await expect(page.get_by_label("Your message")).to_have_value("too early")
    await expect(page.locator(".mine")).to_have_count(1)
    await ended(page)


async def test_a_reload_continues_the_session_and_the_reply(page: Page):
    await say(page, LONG)
    await begun(page)
    await page.reload()
    await expect(page.get_by_text("Continuing your earlier conversation")).to_be_visible()
    assert re.match(r"Joseph Weizenbaum .*\?$", await ended(page))
    await say(page, LONG)
    assert (await ended(page)).startswith("He is the reason")


async def test_a_session_that_is_gone_gives_way_to_a_new_one(browser: Browser, server_url: str):
    page = await browser.new_page()
    await page.goto(server_url)
    await page.evaluate("localStorage.setItem('turnkeeper.session', 's' + '0'.repeat(26))")
    await page.reload()
    await say(page, "Hello")
    assert (await ended(page)).startswith("Hello.")
    await expect(page.get_by_text("no longer on the server")).to_be_visible()


async def test_a_message_the_server_never_got_can_be_sent_again(browser: Browser, server_url: str):
    page = await browser.new_page()
    await page.goto(server_url)
    await page.route("**/api/chat", lambda route: route.abort())
    await say(page, "Are you there?")
    await expect(reply(page)).to_contain_text("The server could not be reached.")
    await page.unroute("**/api/chat")
    await page.get_by_label("Your message").fill("and this")
    await reply(page).get_by_role("button", name="Edit and resend").click()
    await expect(page.get_by_label("Your message")).to_have_value("Are you there?\nand this")
    await page.get_by_label("Your message").press("Enter")
    assert await ended(page)
    await expect(reply(page).locator(".wrong")).to_have_count(0)


async def test_a_message_whose_answer_was_lost_is_not_doubled(browser: Browser, server_url: str):
    page = await browser.new_page()
    await page.goto(server_url)

    async def lose(route: Route) -> None:
        await route.fetch()
        await route.abort()

    await page.route("**/api/chat", lose)
    await say(page, "Are you there?")
    await expect(reply(page)).to_contain_text("The server could not be reached.")
    await page.unroute("**/api/chat")
    await reply(page).get_by_role("button", name="Edit and resend").click()
    await page.get_by_label("Your message").press("Enter")
    assert await ended(page)
    assert await counts(page, server_url) == [2]


async def test_the_same_words_once_more_are_another_message(page: Page, server_url: str):
    for _ in range(2):
        await say(page, "Hello")
        await ended(page)
    assert await counts(page, server_url) == [4]


async def counts(page: Page, server_url: str) -> list[int]:
    """How many messages each session holds."""
    listed = await (await page.request.get(f"{server_url}/api/sessions")).json()
    return [session["message_count"] for session in listed]


async def test_a_killed_server_that_comes_back_tells_how_the_reply_ended(
    browser: Browser, tmp_path: Path
):
    with Server(tmp_path, "--model", "eliza") as server:
        page = await browser.new_page()
        await page.goto(server.url)
        await say(page, LONG)
        await begun(page)
        server.signal(signal.SIGSTOP)  # so that the reply cannot end before the blow
        server.kill()
        await expect(page.get_by_text("Picking up the reply")).to_be_visible()
        server.env["PORT"] = server.url.rpartition(":")[2]
        server.start()
        await ended(page)
        await expect(reply(page)).to_contain_text("stopped before this reply was whole")
        await say(page, "Hello")
        assert await ended(page)


async def test_a_failed_turn_is_told_in_a_sentence(
    browser: Browser, tmp_path: Path, model_server: ModelServer
):
    model_server.script = lambda _: Plan(status=400, body={"error": {"message": "No such luck"}})
    to_model = {"OPENAI_BASE_URL": model_server.base_url, "OPENAI_API_KEY": "a-key-for-tests"}
    with Server(tmp_path, "--model", "m", env=to_model) as server:
        page = await browser.new_page()
        await page.goto(server.url)
        await say(page, "Hello")
        await expect(reply(page).locator(".wrong")).to_contain_text("No such luck")
        await reply(page).get_by_role("button", name="Edit and resend").click()
        model_server.script = lambda _: Plan()
        await page.get_by_label("Your message").press("Enter")
        assert await ended(page) == "Hello there"


async def test_where_the_server_asks_for_it_one_logs_in_and_out(browser: Browser, tmp_path: Path):
    site = await asyncio.to_thread(Site, tmp_path)
    with site.server as server:
        page = await browser.new_page()
        violations: list[str] = []
        page.on("console", lambda message: violations.append(message.text))
        page.on("pageerror", lambda error: violations.append(str(error)))
        await page.goto(server.url)
        await expect(page.get_by_label("Name")).to_be_focused()
        await page.keyboard.press("Escape")
        await page.get_by_label("Name").fill("ann")
        await page.get_by_label("Password").fill("wrong")
        await page.get_by_label("Password").press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("Invalid username or password")
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_label("Password").press("Enter")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await say(page, "zebra")
        first = await ended(page)
        await page.reload()
        await say(page, "zebra")
        assert await ended(page) != first
        turnkeeper(tmp_path, "users", "disable", "ann")
        turnkeeper(tmp_path, "users", "enable", "ann")
        await asyncio.sleep(1.1)
        await say(page, "one more")  # the login is over, and the message waits for the next
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_label("Password").press("Enter")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        assert await ended(page)
        await expect(page.locator(".mine")).to_have_count(2)
        await page.get_by_role("button", name="Log out").click()
        await expect(page.locator(".mine")).to_have_count(0)
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        assert (await page.request.get(f"{server.url}/api/me")).status == 401
        assert {text.partition("(")[0] for text in violations} == {
            "Failed to load resource: the server responded with a status of 401 "
        }


async def test_where_nobody_is_asked_nothing_is_said_of_logging_in(page: Page):
    await say(page, "Hello")
    await ended(page)
    await expect(page.get_by_role("button", name="Log out")).to_be_hidden()


async def test_models_are_offered_when_there_is_a_choice(browser: Browser, server_url: str):
    page = await browser.new_page()
    await page.goto(server_url)
    await expect(page.get_by_label("Model", exact=True)).to_be_hidden()
    two = [{"id": "eliza", "name": "ELIZA"}, {"id": "other", "name": "Another"}]
    await page.route("**/api/models", lambda route: route.fulfill(json=two))
    await page.reload()
    await page.get_by_label("Model", exact=True).select_option("Another")
    async with page.expect_request("**/api/chat") as request:
        await say(page, "Hello")
    assert (await request.value).post_data_json["model"] == "other"
    await expect(reply(page)).to_contain_text("Unknown model: other")


async def test_a_phone_shows_it_all(browser: Browser, server_url: str):
    page = await browser.new_page(viewport={"width": 320, "height": 568})
    await page.goto(server_url)
    await say(page, "x" * 400)
    await ended(page)
    await say(page, "line\n" * 40)
    await ended(page)
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert await page.evaluate(size) == [320, 568]
    await expect(page.get_by_role("button", name="New conversation")).to_be_visible()


async def test_whoever_reads_above_is_not_carried_away(page: Page):
    await say(page, "line\n" * 60)
    await ended(page)
    at_end = "document.querySelector('#view').scrollTop"
    assert await page.evaluate(at_end) > 0
    await say(page, LONG)
    await begun(page)
    await page.evaluate("document.querySelector('#view').scrollTop = 0")
    await ended(page)
    assert await page.evaluate(at_end) == 0

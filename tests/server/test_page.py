"""The page at `/` in a real browser: it chats, shades what came in one forward, and asks nobody but its own server."""

import pytest

from tests.server.browser import CHROMIUM, Browser


@pytest.fixture
def browser(tmp_path):
    running = Browser(tmp_path / "profile")
    yield running
    running.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
def test_chatting_in_a_browser(server, browser, tmp_path):
    browser.call("Emulation.setDeviceMetricsOverride", width=1000, height=720, deviceScaleFactor=1, mobile=False)
    browser.call("Page.navigate", url=server.url)
    browser.wait_for("document.getElementById('model')?.textContent.includes('tiny')")
    assert browser.run("$('weight').disabled")
    browser.run(
        "$('sampler').value = 'mix'; $('sampler').onchange(); $('weight').value = 0.3; $('weight').oninput();$('tokens').value = 60"
    )
    assert not browser.run("$('weight').disabled")
    assert browser.run("$('weight-shown').value") == "0.30"
    assert browser.run("getComputedStyle($('key-field')).display") == "none"
    browser.run("$('kind').value = 'text'; $('text').value = 'import os\\nimport '; $('ask').requestSubmit()")
    browser.wait_for("running !== null")
    browser.wait_for("running === null && $('state').textContent.startsWith('ended')")
    assert browser.run("Number($('count').textContent)") <= 60
    assert browser.run("Number($('speed').textContent)") > 0
    assert browser.run("Number($('rate').textContent)") > 1
    assert browser.run("[...document.querySelectorAll('.piece')].some(piece => piece.style.background.includes('hsl'))")
    assert browser.run("document.querySelectorAll('.draft').length") == 0
    browser.run(
        "$('kind').value = 'chat'; $('tokens').value = 400; $('text').value = 'Hello <b>there</b>'; $('ask').requestSubmit()"
    )
    browser.wait_for("document.querySelectorAll('article.assistant')[1]?.querySelectorAll('.piece').length > 2")
    browser.screenshot(tmp_path / "page.png")
    browser.run("$('ask').requestSubmit()")
    browser.wait_for("running === null")
    server.wait_for("zaya_completions_running", 0)
    assert browser.run("document.querySelectorAll('article b').length") == 0
    assert browser.run("messages.map(message => message.role).join()") == "user,assistant"
    assert browser.errors == []
    assert {address.split("/")[2] for address in browser.requests if not address.startswith("data:")} == {server.url.split("/")[2]}

"""Who is let in, and what is refused: each parameter by its name, in OpenAI's shape, and never with a 500."""

import json
import random
import socket
from urllib.parse import urlsplit

import pytest

from tests.server.conftest import serving

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def by_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


REFUSED = [
    (TEXT, {}, "prompt"),
    (TEXT, {"prompt": "x", "temperatur": 1}, "temperatur"),
    (TEXT, {"prompt": "x", "suffix": "y"}, "suffix"),
    (TEXT, {"prompt": "x", "best_of": 2}, "best_of"),
    (TEXT, {"prompt": "x", "frequency_penalty": 0.1}, "frequency_penalty"),
    (TEXT, {"prompt": "x", "presence_penalty": -1}, "presence_penalty"),
    (TEXT, {"prompt": "x", "logit_bias": {"5": 1}}, "logit_bias"),
    (TEXT, {"prompt": "x", "n": 0}, "n"),
    (TEXT, {"prompt": "x", "n": 129}, "n"),
    (TEXT, {"prompt": "x", "temperature": -1}, "temperature"),
    (TEXT, {"prompt": "x", "temperature": 1e-30}, "temperature"),
    (TEXT, {"prompt": "x", "top_p": 0}, "top_p"),
    (TEXT, {"prompt": "x", "top_p": 5e-324}, "top_p"),
    (TEXT, {"prompt": "x", "top_k": -2}, "top_k"),
    (TEXT, {"prompt": "x", "seed": 2**64}, "seed"),
    (TEXT, {"prompt": "x", "max_tokens": -1}, "max_tokens"),
    (TEXT, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
    (TEXT, {"prompt": "x", "max_tokens": "5"}, "max_tokens"),
    (TEXT, {"prompt": "x", "logprobs": 21}, "logprobs"),
    (TEXT, {"prompt": "x", "stop": [""]}, "stop"),
    (TEXT, {"prompt": "x", "stop": ["a"] * 17}, "stop"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": [4096]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt.0"),
    (TEXT, {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
    (TEXT, {"prompt": "x", "zaya": {"sampler": "beam"}}, "zaya.sampler"),
    (TEXT, {"prompt": "x", "zaya": {"mix_weight": 0.5}}, "zaya.mix_weight"),
    (TEXT, {"prompt": "x", "zaya": {"sampler": "mix", "mix_weight": 1.5}}, "zaya.mix_weight"),
    (TEXT, {"prompt": "x", "zaya": {"sampler": "ar", "proposals": 3}}, "zaya.proposals"),
    (TEXT, {"prompt": "x", "zaya": {"proposals": "some"}}, "zaya.proposals"),
    (TEXT, {"prompt": "x", "zaya": {"show_drafts": True}}, "zaya.show_drafts"),
    (TEXT, {"prompt": "x", "zaya": {"colour": 1}}, "zaya.colour"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0.type",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "\ufdd0"}]}, "messages"),
    (CHAT, {"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"messages": HELLO, "ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
    (CHAT, {"messages": HELLO, "reasoning_effort": "high"}, "reasoning_effort"),
    (CHAT, {"messages": HELLO, "functions": [{"name": "f"}]}, "functions"),
    (CHAT, {"messages": HELLO, "modalities": ["audio"]}, "modalities"),
    (CHAT, {"messages": HELLO, "store": True}, "store"),
    (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
    (CHAT, {"messages": HELLO, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    (CHAT, {"messages": HELLO, "tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "xml"}}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": by_schema({"type": "foo"})}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": by_schema({"not": {}})}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": by_schema({"$ref": "http://example.org/x"})}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": by_schema(deep(60))}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": by_schema({"enum": ["x" * 70_000]})}, "response_format"),
    (CHAT, {"messages": HELLO, "response_format": by_schema({"x-guidance": {"lenient": True}, "not": {}})}, "response_format"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_done_is_named(server, path, body, param):
    status, answer = server.post(path, **body)
    assert status == 400, answer
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param
    assert param.split(".")[-1] in answer["error"]["message"]


def test_neutral_values_of_what_is_not_implemented_pass(server):
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "best_of": 1,
        "suffix": None,
        "user": "me",
        "n": None,
    }
    status, answer = server.post(TEXT, prompt="x", max_tokens=1, **neutral)
    assert status == 200, answer


def test_the_borders_of_what_may_be_asked_for(server):
    """Values at the ends of their ranges reach the engine and come back as texts."""
    ends = [{"top_p": 1e-6}, {"top_k": 1}, {"top_k": 10**9}, {"min_p": 1}, {"temperature": 0.01}, {"temperature": 1000}]
    ends += [{"repetition_penalty": 0.01}, {"repetition_penalty": 100}, {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"logprobs": 20}]
    for sampler in ("ar", "lossless", "mix"):
        for end in [*ends, {"temperature": 0.01, "top_p": 1e-6, "min_p": 1, "top_k": 1, "repetition_penalty": 100}]:
            status, answer = server.post(TEXT, prompt="x = ", max_tokens=4, **end, zaya={"sampler": sampler})
            assert status == 200, (end, answer)


def test_a_text_beyond_the_context_is_refused_with_the_numbers(server):
    pages = "The quick brown fox jumps over the lazy dog. " * 12_000
    for path, body in ((TEXT, {"prompt": pages}), (CHAT, {"messages": [{"role": "user", "content": pages}]})):
        status, answer = server.post(path, **body, max_tokens=7)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        numbers = [int(word.strip(",:")) for word in answer["error"]["message"].split() if word.strip(",:").isdigit()]
        assert numbers[0] == 8192
        assert numbers[2] == 7
        assert numbers[1] + 7 == numbers[3] > 8192


def test_another_model_is_a_404(server):
    assert server.post(TEXT, prompt="x", model="gpt-5")[0] == 404
    assert server.ask("GET", "/v2/models")[0] == 404
    assert server.ask("DELETE", "/v1/models")[0] == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil:80", "0.0.0.0"]
)
def test_a_host_that_is_not_ours(server, host):
    status, _, answer = server.ask("GET", "/v1/models", headers={"Host": host})
    assert (status, answer["error"]["code"]) == (400, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_hosts_that_are(server, host):
    assert server.ask("GET", "/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_a_body_must_be_declared_json(server, kind):
    status, _, answer = server.ask("POST", TEXT, '{"prompt": "x"}', {"Content-Type": kind})
    assert (status, answer["error"]["code"]) == (400, "invalid_content_type")


def test_other_pages_may_not_read_answers(server):
    _, headers, _ = server.ask("GET", "/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in headers
    status, headers, _ = server.ask(
        "OPTIONS", TEXT, headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert status == 405
    assert "access-control-allow-origin" not in headers


def test_the_page_asks_nobody_else(server):
    status, headers, page = server.ask("GET", "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "http://" not in page
    assert "https://" not in page


def test_malformed_bodies_are_refused(server):
    chance = random.Random(0)
    good = json.dumps({"messages": HELLO, "max_tokens": 1, "stop": ["a", "b"], "response_format": {"type": "text"}}).encode()
    bodies = [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"messages":' * 5_000,
        b'{"prompt": "\\ud800"}',
        b"NaN",
        b"1e999",
    ]
    for _ in range(150):
        body = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(body))
            match chance.randrange(3):
                case 0:
                    body[place] = chance.randrange(256)
                case 1:
                    del body[place : place + chance.randint(1, 9)]
                case 2:
                    body[place:place] = chance.choice([b"null", b"[", b"{}", b"1e400", b'"', b"\\u0000", b"-1", b"[[]]"])
        bodies.append(bytes(body))
    for body in bodies:
        for path in (TEXT, CHAT):
            status, _, answer = server.ask("POST", path, body)
            assert status in (200, 400, 404), (body, answer)
    assert server.post(TEXT, prompt="x", max_tokens=1)[0] == 200


def test_broken_http_harms_nobody(server):
    address = urlsplit(server.url)
    for raw in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET /" + b"a" * 200_000,
    ):
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert server.ask("GET", "/health")[0] == 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """With keys, a small body limit and another name."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "keys").write_text("first-key\n\nsecond-key\n")
    arguments = ("--api-key-file", str(directory / "keys"), "--max-body", "0.01", "--allowed-host", "box.local")
    options = ("--cors-origin", "http://ok.example", "--max-model-len", "64", "--log-requests")
    with serving(directory / "log", *arguments, *options, environment={"ZAYA_API_KEY": "third-key"}) as running:
        yield running


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic first-key", "first-key", "Bearer first-key2", "Bearer \u00e9"]
)
def test_a_wrong_key(guarded, header):
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json"):
        status, answered, answer = guarded.ask("GET", path, headers=headers)
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        assert answered["www-authenticate"] == "Bearer"
    assert guarded.ask("GET", "/health", headers=headers)[0] == 200


@pytest.mark.parametrize("key", ["first-key", "second-key", "third-key"])
def test_right_keys(guarded, key):
    assert guarded.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})[0] == 200


def test_limits_that_were_set(guarded):
    key = {"Authorization": "Bearer first-key"}
    status, _, answer = guarded.ask("POST", TEXT, {"prompt": "x" * 20_000}, key)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    connection = guarded.connect()
    connection.request("POST", TEXT, iter([b"x" * 5_000] * 4), {"Content-Type": "application/json", **key})
    assert connection.getresponse().status == 413
    status, _, answer = guarded.ask("POST", TEXT, {"prompt": "x", "max_tokens": 64}, key)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert guarded.ask("GET", "/health", headers={"Host": "box.local:9"})[0] == 200
    _, headers, _ = guarded.ask("GET", "/v1/models", headers=key | {"Origin": "http://ok.example"})
    assert headers["access-control-allow-origin"] == "http://ok.example"


def test_texts_are_logged_only_where_asked_for(server, guarded):
    secret = "def unheard_of_name"
    assert server.post(TEXT, prompt=secret, max_tokens=1)[0] == 200
    assert server.post(TEXT, prompt=secret, max_tokens=-1)[0] == 400
    guarded.ask("POST", TEXT, {"prompt": secret, "max_tokens": 1}, {"Authorization": "Bearer first-key"})
    guarded.wait_for_log(secret)
    assert "unheard_of" not in server.log.read_text()

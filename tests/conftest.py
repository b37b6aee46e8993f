"""Every test run has a token cache of its own."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZAYA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

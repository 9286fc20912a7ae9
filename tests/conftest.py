import sys

import pytest

# It installs a second torch: only by name, `python -m pytest tests/test_colab.py`
collect_ignore = [] if any("test_colab" in word for word in sys.argv) else ["test_colab.py"]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    "What the tests read is cached in a folder of their own, also by the commands that they start."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield

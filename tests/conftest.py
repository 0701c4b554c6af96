"Fixtures that several tests share, and the order of the files."
import pytest

# the long ones, so that no worker is left alone with one at the end
FIRST = ("test_reproduce", "test_processes", "test_evaluation")


@pytest.fixture
def alone(monkeypatch):
    "No setting from outside, and the CPU; restored afterwards, whatever the command line sets."
    for name in ("DATA", "OUTPUTS", "WORKERS"):
        monkeypatch.delenv(f"MIMSSL_{name}", raising=False)
    monkeypatch.setenv("MIMSSL_DEVICE", "cpu")


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(FIRST)}
    # stable: the order within a file stays
    items.sort(key=lambda item: rank.get(item.path.stem, len(FIRST)))

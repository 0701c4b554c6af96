"Helpers of the tests. The tests themselves are tests/test_*.py; fixtures that several of them share are in tests/conftest.py."
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]   # of the project

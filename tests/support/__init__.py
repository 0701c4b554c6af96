"Helpers of the tests, which are tests/test_*.py; the fixtures they share are in tests/conftest.py."
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]   # of the project

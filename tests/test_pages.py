"README's tables are what the records say."
from pathlib import Path
import pytest
from mimssl.report.pages import TABLES, drawn, fill

ROOT = Path(__file__).resolve().parents[1]


def test_tables_are_not_stale():
    text = (ROOT / "README.md").read_text()
    shown = [name for name in TABLES if f"<!-- table: {name} -->" in text]
    assert shown, "README shows none of the tables of mimssl.report.pages"
    again = fill(text, lambda name: drawn(name, ROOT / "outputs"))
    assert again == text, "README's tables differ from the records in outputs/: make figures"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_can_be_drawn(name):
    assert "Not measured yet" not in drawn(name, ROOT / "outputs")

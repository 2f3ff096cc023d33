"""What `make links` asks: a DOI of the DOI system, everything else of the page itself."""

import re
import sys

import pytest

from repository import ROOT

sys.path.insert(0, str(ROOT / "book/_ext"))
from otbook_links import PLACEHOLDER, ask_for_the_handle, leave_out


@pytest.mark.parametrize("address", ["https://doi.org/10.1090/gsm/058", "http://dx.doi.org/10.1090/gsm/058"])
def test_a_doi_is_looked_up_in_the_doi_system(address):
    assert ask_for_the_handle(None, address) == "https://doi.org/api/handles/10.1090/gsm/058"


@pytest.mark.parametrize(
    "address", ["https://arxiv.org/abs/1306.0895", "https://doi.org/", "https://a.org/?doi.org/10.1"]
)
def test_another_address_is_asked_as_it_is(address):
    assert ask_for_the_handle(None, address) is None


def test_only_placeholders_and_this_machine_are_left_out():
    class Config:
        pass

    leave_out(None, Config)
    ignored = [re.compile(pattern) for pattern in Config.linkcheck_ignore]

    def left_out(address):
        return any(pattern.match(address) for pattern in ignored)

    assert left_out(f"https://github.com/{PLACEHOLDER}/otbook")
    assert left_out("http://localhost:8000")
    assert not left_out("https://github.com/someone/another-book")
    assert not left_out("https://localhost.org")

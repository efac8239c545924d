"""Numbers that no change of structure or wording may move: `tests/unchanged`."""

import json

import pytest
from commands import run_in
from unchanged import audits

WHOLE = json.loads(audits.RECORDED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", audits.AUDITS)
def test_every_section_of_an_audit_is_what_it_was(name, tmp_path):
    digests, rates = audits.run_audit(name, tmp_path, run_in)
    before = WHOLE["audits"][name]
    assert set(digests) == set(before["digests"])
    assert set(rates) == set(before["rates"])
    for file, values in rates.items():
        assert values == pytest.approx(before["rates"][file], rel=1e-3)
    if WHOLE["environment"] == audits.environment():  # elsewhere last digits may differ
        assert {k: v for k, v in digests.items() if v != before["digests"][k]} == {}

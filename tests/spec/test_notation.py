"""NAME:key=value,key=value, read and refused."""

import re
import subprocess
import sys

import pytest

from purify_audit.core.errors import PlanError
from purify_audit.spec.notation import parse_settings


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("identity", "identity", {}),
        ("jpeg:quality=75", "jpeg", {"quality": "75"}),
        ("ddim:steps=10,eta=0.5,clip=true", "ddim", {"steps": "10", "eta": "0.5", "clip": "true"}),
        (" jpeg : quality = 75 , x = y ", "jpeg", {"quality": "75", "x": "y"}),
        ("a:b=c=d,e=f:g", "a", {"b": "c=d", "e": "f:g"}),
    ],
)
def test_name_and_settings(text, name, settings):
    assert parse_settings(text) == (name, settings)


def test_settings_keep_the_order_written():
    assert list(parse_settings("n:b=1,a=2,c=3")[1]) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^'' names nothing: write NAME or NAME:key=value,key=value$"),
        ("  ", "^'  ' names nothing"),
        (":quality=75", "^':quality=75' names nothing"),
        ("jpeg:", "^'jpeg:': '' is not key=value; write NAME:key=value,key=value$"),
        ("jpeg:quality", "^'jpeg:quality': 'quality' is not key=value"),
        ("jpeg:quality=", "^'jpeg:quality=': 'quality=' is not key=value"),
        ("jpeg:=75", "^'jpeg:=75': '=75' is not key=value"),
        ("jpeg:quality=75,", "^'jpeg:quality=75,': '' is not key=value"),
        ("jpeg:quality=75,quality=75", "gives 'quality' twice$"),
        ("jpeg:kind=median", "'kind' is no setting; the name before the colon gives it$"),
        ("jpeg:kind=jpeg", "'kind' is no setting"),
    ],
)
def test_malformed_settings_are_refused(text, message):
    with pytest.raises(PlanError) as raised:
        parse_settings(text)
    assert re.search(message, str(raised.value))


def test_torch_is_not_needed():
    script = "import sys, purify_audit.spec.project_file; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)

"""Lines of keys and tables of TOML."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from purify_audit.spec.toml_lines import line_numbers, line_of

TEXT = '''\
a = 1
"b c" = 2
d.e = 3

[t]      # a comment
x = """
y = 1
[z]
"""
z = [
  1,
]
[[t.rule]]
id = 1
[[t.rule]]
id = 2
[t.rule.inner]
k = 1
[[ t . rule ]]
"id" = 3
'''


def test_every_key_has_its_line():
    assert tomllib.loads(TEXT)["t"]["rule"][2]["id"] == 3
    lines = line_numbers(TEXT)
    assert lines["a",] == 1
    assert lines["b c",] == 2
    assert lines["d", "e"] == 3
    assert lines["t",] == 5
    assert lines["t", "x"] == 6
    assert ("t", "y") not in lines
    assert ("z",) not in lines
    assert lines["t", "z"] == 10
    assert [lines["t", "rule", n] for n in range(3)] == [13, 15, 19]
    assert [lines["t", "rule", n, "id"] for n in range(3)] == [14, 16, 20]
    assert lines["t", "rule", 1, "inner", "k"] == 18


ARRAYS = '''\
probes = [
  "power:block=2",
  ["x"],
  [ 1, "]", # ]
  ],
  """
[y]
\\""" [z] """,
]
inline = { a = [
  ["q"]
] }
b = ']'
c = """]"""  # [
d = 1
[real]
e = 2
'''


def test_what_is_inside_a_multi_line_value_is_no_table():
    """A lone `["x"]` in an array looks like a table's header."""
    assert set(tomllib.loads(ARRAYS)) == {"probes", "inline", "b", "c", "d", "real"}
    lines = line_numbers(ARRAYS)
    assert lines == {
        ("probes",): 1,
        ("inline",): 10,
        ("b",): 13,
        ("c",): 14,
        ("d",): 15,
        ("real",): 16,
        ("real", "e"): 17,
    }


def test_what_has_no_line_has_that_of_what_is_around_it():
    lines = line_numbers(TEXT)
    assert line_of(lines, ("t", "rule", 1, "none")) == 15
    assert line_of(lines, ("t", "none", "none")) == 5
    assert line_of(lines, ("none",)) is None
    assert line_of(lines, ()) is None


@given(st.text(max_size=200))
def test_any_text_has_some_lines(text):
    assert all(1 <= n <= len(text.split("\n")) for n in line_numbers(text).values())

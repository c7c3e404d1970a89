import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.errors import InvalidArgument, ResourceExhausted
from shim.metadata.filters import Filter
from shim.metadata.values import Container

WEB = Container("web", {"tier": "front", "io.x/y-z": "a b", "empty": ""}, "busybox:1", "runc")
DB = Container("db", {"tier": "back"}, "", "/usr/bin/crun")


def chosen(text):
    return [container.id for container in Filter(text).select([WEB, DB])]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", ["web", "db"]),
        ("id==web", ["web"]),
        ("id!=web", ["db"]),
        ("id~=^w", ["web"]),
        ("id~=b", ["web", "db"]),
        ("id", ["web", "db"]),
        ("image", ["web"]),
        ("image==busybox:1", ["web"]),
        ('image==""', []),
        ("image!=busybox:1", ["db"]),
        ("runtime==/usr/bin/crun", ["db"]),
        ("labels.tier==front", ["web"]),
        ("labels.tier!=front", ["db"]),
        ("labels.tier~=^(front|back)$", ["web", "db"]),
        ("labels.empty", ["web"]),
        ('labels.empty==""', ["web"]),
        ("labels.empty!=x", ["web", "db"]),
        ("labels.none", []),
        ("labels.none!=x", ["web", "db"]),
        ('labels.none==""', []),
        ("labels.none~=x", []),
        ("labels.io.x/y-z", ["web"]),
        ('labels."io.x/y-z"=="a b"', ["web"]),
        ('labels.io."x/y-z"=="a b"', ["web"]),
        (r'labels."\u0074ier"=="fr\x6fnt"', ["web"]),
        (r'id=="\U00000077eb"', ["web"]),
        (r'id~="\\Aweb"', ["web"]),
        (r"runtime~=/^\/usr\/.{3}\//", ["db"]),
        ("runtime~=|^/usr/|", ["db"]),
        (r"id~=|^web\|x$|", ["web"]),
        ("id~=/^.{1,2}$/", ["db"]),
        ("id==web,labels.tier==front", ["web"]),
        ("id==web,labels.tier==back", []),
        (" id == web , image ", ["web"]),
        ("id==w\u00fcb", []),
        (r'id=="\"\a\n"', []),
    ],
)
def test_what_a_filter_chooses(text, ids):
    assert chosen(text) == ids


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        (" ", 2, "the name of a field"),
        (",", 1, "the name of a field"),
        ("id==web,", 9, "the name of a field"),
        ("id=web", 3, "a comma or the end"),
        ("id==web db", 9, "a comma or the end"),
        ("id==", 5, "a value"),
        ("id==,image", 5, "a value"),
        ("id~=", 5, "a value"),
        ("image,name==x", 7, "one of id, labels.KEY, image and runtime"),
        ("id.x==x", 1, "one of"),
        ("labels==x", 1, "one of"),
        ("labels.==x", 8, "the name of a field"),
        ('labels.""==x', 10, "the name of a field"),
        ('id=="web', 5, "a text whose quote is closed"),
        ('labels."x==1', 8, "a text whose quote is closed"),
        ("id~=/web", 5, "an expression whose quote is closed"),
        ("id~=|web", 5, "an expression whose quote is closed"),
        (r'id~="\Aweb"', 6, "an escape of Go's"),
        (r'id=="a\xff"', 7, "an escape of Go's"),
        (r'id=="\ud800"', 6, "an escape of Go's"),
        (r'id=="\UFFFFFFFF"', 6, "an escape of Go's"),
        (r'id=="\u12"', 6, "an escape of Go's"),
        ("id~=(", 5, "the expression is wrong: missing ): ("),
        (r'image,id~="(?=x)"', 11, "the expression is wrong"),
        (r"id~=/(a)\1/", 5, "the expression is wrong"),
        ("id~=" + "x" * 1001, 5, "more than 1000 characters"),
        ("id~=/(((x{30}){30}){30})/", 5, "the expression is wrong"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text, place, expected):
    with pytest.raises(InvalidArgument) as caught:
        Filter(text)
    assert f"wrong at character {place}: " in str(caught.value)
    assert expected in str(caught.value)


def test_a_filter_that_is_too_long_is_refused():
    with pytest.raises(InvalidArgument, match="more than 4096 characters"):
        Filter("id==" + "x" * 4093)


def test_an_expression_that_would_take_for_ever_takes_no_time():
    text = Container("c", {"x": "a" * 4000 + "!"})
    before = time.thread_time()
    assert Filter("labels.x~=^(a+)+$").select([text] * 100) == []
    assert time.thread_time() - before < 1


def test_what_takes_long_over_many_containers_is_given_up():
    containers = [Container(f"c{n}", {"x": "ab" * 2000}) for n in range(1000)]
    before = time.thread_time()
    with pytest.raises(ResourceExhausted, match="ask for less"):
        Filter("labels.x~=/([ab]{1,30}){1,30}c/").select(containers)
    assert time.thread_time() - before < 2


@settings(derandomize=True)
@given(key=st.text(min_size=1), value=st.text())
def test_anything_can_be_asked_for_in_quotes(key, value):
    text = f"labels.{quoted(key)}=={quoted(value)}"
    found = Filter(text).select([Container("c", {key: value}), Container("d", {key: value + "x"})])
    assert [container.id for container in found] == ["c"]


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@settings(derandomize=True)
@given(st.text(alphabet="idlabes.,=!~\"'/|\\x ({[*]})u0"))
def test_a_filter_is_right_or_refused(text):
    with contextlib.suppress(InvalidArgument):
        Filter(text).select([WEB, DB])

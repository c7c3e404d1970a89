"""Choosing an image in a layout, and believing nothing of it; what it says about running it."""

import contextlib
import json
import os

import pytest

from shim.errors import InvalidArgument
from shim.model import User
from shim.oci.spec import spec
from shim.snapshots import image
from shim.snapshots.image import Defaults, defaults, find_user
from shim.snapshots.limits import Meter
from shim.snapshots.oci import Layout, Platform, is_layout, parse_platform
from tests.fakes.archives import LayoutMaker, archive, member

AMD64 = parse_platform("linux/amd64")
TAR = archive(member("a"))


@pytest.fixture
def maker(tmp_path):
    return LayoutMaker(tmp_path / "layout")


def choose(maker, wanted=AMD64, reference=""):
    """The config of the image that is chosen; all of its layers are read."""
    directory = os.open(maker.write(), os.O_RDONLY)
    try:
        layout = Layout(directory)
        found = layout.image(wanted, reference)
        for layer in found.layers:
            with layout.open(layer, Meter(None, "", 0)) as blob:
                blob.verify()
        return found.config["config"]
    finally:
        os.close(directory)


def add(maker, label, platform=None, **options):
    descriptor = maker.image([TAR], {"Labels": {"is": label}}, platform, **options)
    if platform:
        descriptor["platform"] = platform
    return descriptor


def chosen(maker, *args):
    return choose(maker, *args)["Labels"]["is"]


ARM = {"os": "linux", "architecture": "arm64", "variant": "v8"}
INTEL = {"os": "linux", "architecture": "amd64"}


@pytest.mark.parametrize("nested", [False, True])
def test_the_image_for_the_platform_is_chosen(maker, nested):
    add(maker, "arm", ARM)
    add(maker, "intel", INTEL)
    add(maker, "windows", {**INTEL, "os": "windows"})
    if nested:
        maker.manifests = [maker.index([maker.index(maker.manifests)])]
    assert chosen(maker) == "intel"
    assert chosen(maker, parse_platform("linux/arm64")) == "arm"
    with pytest.raises(InvalidArgument, match=r"no image for linux/s390x; there is linux/amd64"):
        choose(maker, parse_platform("linux/s390x"))


def test_the_config_says_the_platform_where_the_index_does_not(maker):
    maker.image([TAR], {"Labels": {"is": "arm"}}, ARM)
    maker.image([TAR], {"Labels": {"is": "intel"}}, INTEL)
    assert chosen(maker) == "intel"


def test_other_platforms_need_not_be_there(maker):
    gone = add(maker, "arm", ARM)
    add(maker, "intel", INTEL)
    (maker.path / "blobs" / gone["digest"].replace(":", "/")).unlink()
    assert chosen(maker) == "intel"


def test_the_best_variant_is_chosen(maker):
    for variant in ("v5", "v6", "v7"):
        add(maker, variant, {"os": "linux", "architecture": "arm", "variant": variant})
    assert chosen(maker, Platform("linux", "arm", "v6")) == "v6"
    assert chosen(maker, Platform("linux", "arm", "v8")) == "v7"


def test_one_of_several_images_has_to_be_named(maker):
    add(maker, "one", name="web:1")
    add(maker, "two", name="web:2")
    assert chosen(maker, AMD64, "web:2") == "two"
    with pytest.raises(InvalidArgument, match=r"2 images .* say which one: web:1, web:2"):
        choose(maker)
    with pytest.raises(InvalidArgument, match="no image called 'web:3'"):
        choose(maker, AMD64, "web:3")


def test_one_image_of_two_names_is_one(maker):
    add(maker, "one", name="web:1")
    add(maker, "one", name="web:latest")
    assert chosen(maker) == "one"


def test_attestations_are_no_images(maker):
    add(maker, "one")
    other = add(maker, "two")
    other["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    assert chosen(maker) == "one"


def test_this_machine_has_a_platform():
    assert parse_platform("").os == "linux"
    assert parse_platform("linux/arm64/v8") == parse_platform("linux/arm64")
    for text in ("linux", "linux/", "a/b/c/d", "/amd64"):
        with pytest.raises(InvalidArgument):
            parse_platform(text)


def rewrite(maker, descriptor, data):
    path = maker.path / "blobs" / descriptor["digest"].replace(":", "/")
    path.unlink()
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        data(path)


def manifest_of(maker):
    path = maker.path / "blobs" / maker.manifests[0]["digest"].replace(":", "/")
    return json.loads(path.read_text())


def replace_manifest(maker, change):
    manifest = manifest_of(maker)
    change(manifest)
    (old,) = maker.manifests
    maker.manifests = [maker.json(manifest, old["mediaType"])]


def of_layer(change):
    def attack(maker):
        replace_manifest(maker, lambda manifest: change(maker, manifest["layers"][0]))

    return attack


def flip(maker, layer):
    data = (maker.path / "blobs" / layer["digest"].replace(":", "/")).read_bytes()
    rewrite(maker, layer, data[:-1] + bytes([data[-1] ^ 1]))


def nest(maker):
    for _ in range(6):
        maker.manifests = [maker.index(maker.manifests)]


def link_out(maker, layer):
    rewrite(maker, layer, lambda path: path.symlink_to("/etc/passwd"))


ATTACKS = {
    "another content": of_layer(flip),
    "less content": of_layer(lambda maker, layer: rewrite(maker, layer, b"x")),
    "a link out": of_layer(link_out),
    "a FIFO": of_layer(lambda maker, layer: rewrite(maker, layer, os.mkfifo)),
    "a directory": of_layer(lambda maker, layer: rewrite(maker, layer, os.mkdir)),
    "a device": of_layer(
        lambda maker, layer: rewrite(
            maker, layer, lambda path: os.mknod(path, 0o20600, os.makedev(1, 5))
        )
    ),
    "nothing there": of_layer(lambda maker, layer: rewrite(maker, layer, lambda path: None)),
    "a digest that leads out": of_layer(
        lambda maker, layer: layer.update(digest="sha256:../../../etc/passwd")
    ),
    "a digest of another kind": of_layer(lambda maker, layer: layer.update(digest="md5:0")),
    "no digest": of_layer(lambda maker, layer: layer.pop("digest")),
    "a size that is none": of_layer(lambda maker, layer: layer.update(size="9")),
    "a negative size": of_layer(lambda maker, layer: layer.update(size=-1)),
    "an unknown layer": of_layer(
        lambda maker, layer: layer.update(mediaType=layer["mediaType"] + "+encrypted")
    ),
    "no layers": lambda maker: replace_manifest(maker, lambda manifest: manifest.pop("layers")),
    "layers that are none": lambda maker: replace_manifest(
        maker, lambda manifest: manifest.update(layers=["x"])
    ),
    "more layers than digests": lambda maker: replace_manifest(
        maker, lambda manifest: manifest["layers"].append(manifest["layers"][0])
    ),
    "thousands of layers": lambda maker: replace_manifest(
        maker, lambda manifest: manifest.update(layers=manifest["layers"] * 5000)
    ),
    "no image": lambda maker: replace_manifest(
        maker, lambda manifest: manifest["config"].update(mediaType="application/x.helm")
    ),
    "a config that is too large": lambda maker: replace_manifest(
        maker, lambda manifest: manifest["config"].update(size=1 << 40)
    ),
    "a deep index": nest,
    "no manifests": lambda maker: maker.manifests.clear(),
    "manifests that are none": lambda maker: maker.manifests.append(7),
    "an index that is no object": lambda maker: maker.manifests.__setitem__(
        0, maker.json([], "application/vnd.oci.image.index.v1+json")
    ),
    "a manifest that is no JSON": lambda maker: maker.manifests.__setitem__(
        0, maker.blob(b"[" * 100_000, "application/vnd.oci.image.manifest.v1+json")
    ),
    "another layout": lambda maker: (maker.path / "oci-layout").write_text(
        '{"imageLayoutVersion": "2.0"}'
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_of_a_layout_is_believed(maker, attack):
    maker.image([TAR])
    assert choose(maker) == {}
    attack(maker)
    with pytest.raises(InvalidArgument):
        choose(maker)


def test_a_link_that_leads_out_is_told(maker):
    maker.image([TAR])
    of_layer(link_out)(maker)
    with pytest.raises(InvalidArgument, match=r"blobs/sha256/.* symbolic link .* the file itself"):
        choose(maker)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_layout_needs_its_files(maker, name):
    maker.image([TAR])
    maker.write()
    directory = os.open(maker.path, os.O_RDONLY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, directory)
        assert is_layout(directory)
        (maker.path / name).unlink()
        assert not is_layout(directory)
        with pytest.raises(InvalidArgument, match=name):
            Layout(directory).image(AMD64, "")


def test_layers_are_named_by_what_is_below_them(maker):
    maker.image([TAR, archive(member("b")), TAR])
    directory = os.open(maker.write(), os.O_RDONLY)
    try:
        found = Layout(directory).image(AMD64, "")
    finally:
        os.close(directory)
    first, second, third = found.chain_ids()
    assert first == found.diff_ids[0]
    assert len({first, second, third}) == 3


PASSWD = "root:x:0:0:::\nweb:x:33:44:::\nbroken\nworse:x:a:b:::\n"
GROUP = "root:x:0:\nwww:x:44:\nlog:x:50:web,other\nmail:x:51:web\nbad:x:y:web\n"


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User()),
        ("web", User(33, 44, (50, 51))),
        ("33", User(33, 44, (50, 51))),
        ("web:log", User(33, 50)),
        ("web:7", User(33, 7)),
        ("1000", User(1000, 0)),
        ("1000:www", User(1000, 44)),
        ("1000:1000", User(1000, 1000)),
        (":50", User(0, 50)),
        ("nobody", None),
        ("web:nobody", None),
        ("worse", None),
        ("-1", None),
        (str(2**32 - 1), None),
        ("9" * 30, None),
        ("root", User(0, 0)),
    ],
)
def test_users_are_looked_up(text, user):
    assert find_user(text, PASSWD, GROUP) == user


CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "author": "somebody",
    "config": {
        "User": "web",
        "Env": ["PATH=/bin", "A=b=c", "=x"],
        "Entrypoint": ["/init", "-x"],
        "Cmd": ["serve"],
        "WorkingDir": "srv",
        "StopSignal": "SIGQUIT",
        "Labels": {"org.opencontainers.image.author": "label", "k": "v"},
        "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
        "Volumes": {"/data": {}},
    },
}


def test_a_config_becomes_defaults_of_a_spec():
    found = defaults(CONFIG, PASSWD, GROUP)
    assert Defaults.from_bytes(found.to_bytes()) == found
    made = found.apply(spec("denseshim-x", ["ignored"]))
    process = made["process"]
    assert process["args"] == ["/init", "-x", "serve"]
    assert process["cwd"] == "/srv"
    assert process["env"] == ["PATH=/bin", "A=b=c"]
    assert process["user"] == {"uid": 33, "gid": 44, "additionalGids": [50, 51]}
    assert made["annotations"] == {
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.architecture": "amd64",
        "org.opencontainers.image.author": "label",
        "org.opencontainers.image.stopSignal": "SIGQUIT",
        "org.opencontainers.image.exposedPorts": "443/tcp,80/tcp",
        "k": "v",
    }
    assert found.volumes == ("/data",)
    assert found.stop_signal == "SIGQUIT"
    assert made["linux"] == spec("denseshim-x", [])["linux"]
    assert found.args(["other", "one"]) == ["/init", "-x", "other", "one"]


def test_an_image_may_say_nothing():
    found = defaults({})
    assert found == Defaults() == Defaults.from_bytes(b"") == defaults({"config": None})
    assert found.args(["sh"]) == ["sh"]
    with pytest.raises(InvalidArgument, match="give one"):
        found.apply(spec("denseshim-x", []))


def test_an_unknown_user_is_told_when_it_is_needed():
    found = defaults({"config": {"User": "ghost", "Cmd": ["x"]}})
    assert Defaults.from_bytes(found.to_bytes()) == found
    with pytest.raises(InvalidArgument, match="'ghost' is not in its /etc/passwd"):
        found.apply(spec("denseshim-x", []))


@pytest.mark.parametrize(
    "run",
    [
        [],
        {"Env": "A=b"},
        {"Env": [7]},
        {"Cmd": ["a\0"]},
        {"Entrypoint": "sh"},
        {"WorkingDir": 7},
        {"User": ["root"]},
        {"Labels": {"a": 7}},
        {"Labels": ["a"]},
        {"ExposedPorts": "80"},
    ],
    ids=str,
)
def test_a_config_that_is_not_as_it_should_be_is_refused(run):
    with pytest.raises(InvalidArgument):
        image.defaults({"config": run or "x"})

"""The XMP of outputs: the file's own, and the restoration in its history."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.jpeg.metadata import Metadata
from pipeline.outputs.formats import encode_image
from pipeline.outputs.provenance import ENHANCED, Provenance
from pipeline.outputs.xmp import xmp_packet

NAMES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "stEvt": "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
}
HISTORY = '<xmpMM:History><rdf:Seq><rdf:li stEvt:action="saved"/></rdf:Seq></xmpMM:History>'
KEYWORDS = "<dc:subject><rdf:Bag><rdf:li>Grüße &amp; Meer</rdf:li></rdf:Bag></dc:subject>"
PROVENANCE = Provenance("abc", "sample", 7, 0, 1.0, None, 99, None, 0, None)


def file_packet(content: str, attributes: str = "") -> bytes:
    """A packet as editors write it, with white space to grow into."""
    declared = " ".join(f'xmlns:{prefix}="{name}"' for prefix, name in NAMES.items() if prefix != "rdf")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{NAMES["rdf"]}"><rdf:Description rdf:about="uuid:1" {declared} {attributes}>{content}'
        f"</rdf:Description></rdf:RDF></x:xmpmeta>{' ' * 200}<?xpacket end='w'?>\0"
    ).encode()


def properties(packet: bytes) -> ElementTree.Element:
    """The element rdf:RDF."""
    text = packet.decode()
    assert text.startswith("<?xpacket begin=") and text.endswith('<?xpacket end="w"?>')
    return ElementTree.fromstring(packet).find("rdf:RDF", NAMES)


def values(rdf: ElementTree.Element, prefix: str, name: str) -> list[str]:
    """All values of a property, given as attributes or elements."""
    key = f"{{{NAMES[prefix]}}}{name}"
    return [e.attrib[key] for e in rdf.iter() if key in e.attrib] + [e.text for e in rdf.iter(key)]


def test_the_restoration_joins_the_files_own_properties():
    rdf = properties(xmp_packet(file_packet(KEYWORDS + HISTORY, 'xmp:Rating="5" xmp:CreatorTool="Camera"'), PROVENANCE))
    assert [item.text for item in rdf.findall(".//dc:subject/rdf:Bag/rdf:li", NAMES)] == ["Grüße & Meer"]
    assert values(rdf, "xmp", "Rating") == ["5"]
    assert values(rdf, "xmp", "CreatorTool") == ["Camera"]  # which made it first
    assert values(rdf, "Iptc4xmpExt", "DigitalSourceType") == [ENHANCED]
    (history,) = rdf.findall(".//xmpMM:History/rdf:Seq", NAMES)
    assert values(history, "stEvt", "action") == ["saved", "edited"]
    assert values(history, "stEvt", "parameters") == [PROVENANCE.parameters]
    assert set(values(rdf, "rdf", "about")) == {"uuid:1"}


def test_a_file_without_history_gets_one():
    rdf = properties(xmp_packet(file_packet(KEYWORDS), PROVENANCE))
    assert values(rdf, "stEvt", "action") == ["edited"]
    assert values(rdf, "xmp", "CreatorTool") == [PROVENANCE.software]


@pytest.mark.parametrize(
    "claim",
    [
        {"content": "<Iptc4xmpExt:DigitalSourceType>camera</Iptc4xmpExt:DigitalSourceType>"},
        {"content": "", "attributes": 'Iptc4xmpExt:DigitalSourceType="camera"'},
    ],
)
def test_what_is_no_longer_true_is_removed(claim):
    rdf = properties(xmp_packet(file_packet(**claim), PROVENANCE))
    assert values(rdf, "Iptc4xmpExt", "DigitalSourceType") == [ENHANCED]
    kept = properties(xmp_packet(file_packet(**claim), None))
    assert values(kept, "Iptc4xmpExt", "DigitalSourceType") == ["camera"]
    extended = file_packet(KEYWORDS, 'xmpNote:HasExtendedXMP="0123"')
    assert values(properties(xmp_packet(extended, None)), "xmpNote", "HasExtendedXMP") == []


@pytest.mark.parametrize(
    "history",
    [
        "<xmpMM:History/>",
        '<xmpMM:History><rdf:Bag><rdf:li stEvt:action="saved"/></rdf:Bag></xmpMM:History>',
        '<xmpMM:History rdf:parseType="Resource"><stEvt:action>saved</stEvt:action></xmpMM:History>',
    ],
)
def test_a_history_that_is_no_sequence_is_replaced(history):
    rdf = properties(xmp_packet(file_packet(history), PROVENANCE))
    assert len(rdf.findall(".//xmpMM:History", NAMES)) == 1
    assert values(rdf, "stEvt", "action") == ["edited"]


def test_what_is_of_the_jpeg_file_alone_is_left_out():
    packet = file_packet(
        "<dc:format>image/jpeg</dc:format><GCamera:MotionPhoto>1</GCamera:MotionPhoto>", 'xmp:Rating="5"'
    )
    rdf = properties(xmp_packet(packet, None))
    assert values(rdf, "dc", "format") == values(rdf, "GCamera", "MotionPhoto") == []
    assert values(rdf, "xmp", "Rating") == ["5"]


def test_names_and_comments_stay_as_they_are():
    content = f'<!-- by hand -->{KEYWORDS}<crs:Look crs:Name="a &lt; b"/><?tool 1?>'
    packet = xmp_packet(file_packet(content), None).decode()
    assert content in packet
    assert xmp_packet(packet.encode(), None).decode() == packet


def test_line_breaks_and_cdata_stay():
    packet = file_packet("<crs:a>1&#13;\n2</crs:a><crs:b><![CDATA[x < y]]></crs:b>", 'crs:c="1&#xA;2&#x9;3&quot;"')
    rdf = properties(xmp_packet(packet, None))
    assert values(rdf, "crs", "a") == ["1\r\n2"]
    assert values(rdf, "crs", "b") == ["x < y"]
    assert values(rdf, "crs", "c") == ['1\n2\t3"']


def test_what_follows_a_packet_is_ignored():
    assert xmp_packet(file_packet(KEYWORDS) + b"\xc3\xa9\0garbage", None) == xmp_packet(file_packet(KEYWORDS), None)


def test_without_a_packet_there_is_the_restoration_alone():
    assert xmp_packet(None, None) is None
    assert xmp_packet(None, PROVENANCE) == PROVENANCE.xmp()


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>'


@pytest.mark.parametrize(
    "packet",
    [b"", b"\0", b"no XML", b"<x:xmpmeta>", b"<a/>", b"\xff\xfe<\0a\0", BOMB, b"<a>" * 9000 + b"</a>" * 9000],
)
def test_what_cannot_be_read_counts_as_none(packet):
    assert xmp_packet(packet, None) is None
    assert xmp_packet(packet, PROVENANCE) == PROVENANCE.xmp()
    nested = b"<dc:a>" * 9000 + b"</dc:a>" * 9000
    assert xmp_packet(file_packet(nested.decode()), PROVENANCE) == PROVENANCE.xmp()


@pytest.mark.parametrize("format", ["png", "webp"])
def test_pillow_finds_packet_and_resolution(format):
    image = np.zeros((3, 9, 9), np.uint8)
    metadata = Metadata(xmp=file_packet(KEYWORDS), dpi=(300.0, 150.0))
    with Image.open(io.BytesIO(encode_image(image, format, metadata, PROVENANCE))) as loaded:
        loaded.load()
        found = loaded.info["xmp"]
        assert "Grüße" in found.decode()
        assert "mismatches=0" in found.decode()
        if format == "png":
            assert loaded.info["dpi"] == pytest.approx((300, 150), abs=0.02)
    with Image.open(io.BytesIO(encode_image(image, format))) as plain:
        assert "xmp" not in plain.info
        assert "dpi" not in plain.info

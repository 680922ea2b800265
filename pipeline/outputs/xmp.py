"""The XMP of an output (ISO 16684-1): the file's own, with the restoration added to its history.

    packet = xmp_packet(metadata.xmp, provenance)

The document is kept as it is, prefixes and unknown properties included, but for what is no longer true."""

from __future__ import annotations

from xml.dom.minidom import Comment, Element, Node, ProcessingInstruction, Text, parseString
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape, quoteattr

from pipeline.outputs.provenance import Provenance

MAX_DEPTH = 100
"""Elements within elements; real packets have about ten."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP = "http://ns.adobe.com/xap/1.0/"
_MEDIA = "http://ns.adobe.com/xap/1.0/mm/"
_NOT_CARRIED = (  # of these namespaces all properties, or one
    ("http://ns.adobe.com/xmp/note/", "HasExtendedXMP"),  # further segments with XMP
    ("http://purl.org/dc/elements/1.1/", "format"),  # of the file
    ("http://ns.google.com/photos/1.0/camera/", None),  # a video after the image
    ("http://ns.google.com/photos/1.0/container/", None),  # other images after it
    ("http://ns.adobe.com/hdr-gain-map/1.0/", None),  # how to apply one of them
)
_REPLACED = (
    ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "DigitalSourceType"),
    (_MEDIA, "InstanceID"),  # of the unchanged image
)
_ORIENTATION = ("http://ns.adobe.com/tiff/1.0/", "Orientation")
_WRAPPER = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{}\n<?xpacket end="w"?>'


def xmp_packet(packet: bytes | None, provenance: Provenance | None, upright: bool = False) -> bytes | None:
    """An XMP packet in UTF-8, or None if there is nothing to say.

    packet: the file's; one that is no XML in UTF-8, declares a document type, or has no RDF counts as None.
    provenance: None to add nothing.
    upright: the image has been turned, so its orientation is left out."""
    own = None if provenance is None else provenance.xmp()
    if packet is None:
        return own
    try:
        root = _parse(packet)
        rdf = _rdf(root)
        for namespace, name in (*_NOT_CARRIED, *[_ORIENTATION] * upright):
            _remove(rdf, namespace, name)
        if own is not None:
            _add(rdf, own)
        return _WRAPPER.format(_text_of(root)).encode()
    except ValueError:  # also what is not UTF-8
        return own


def _parse(packet: bytes) -> Element:
    """The document's root. Raises ValueError."""
    text = packet.decode().partition("<?xpacket end")[0].strip("\ufeff\0 \r\n\t")
    if "<!DOCTYPE" in text:
        raise ValueError("a document type may define entities, which explode")
    try:
        root = parseString(text).documentElement
    except ExpatError as error:
        raise ValueError(str(error)) from error
    assert root is not None  # or it would be no XML
    return root


def _rdf(root: Element) -> Element:
    """The element rdf:RDF: the root, or a child of it. Raises ValueError if there is none."""
    for element in (root, *_elements(root)):
        if (element.namespaceURI, element.localName) == (_RDF, "RDF"):
            return element
    raise ValueError("no element rdf:RDF")


def _elements(parent: Element) -> list[Element]:
    return [node for node in parent.childNodes if isinstance(node, Element)]


def _children(parent: Element, namespace: str, name: str | None) -> list[Element]:
    return [e for e in _elements(parent) if e.namespaceURI == namespace and name in (None, e.localName)]


def _remove(rdf: Element, namespace: str, name: str | None) -> None:
    """Removes a property, or all of a namespace: attributes or children of descriptions."""
    for description in _elements(rdf):
        for (space, key), _ in list(description.attributes.itemsNS()):
            if space == namespace and name in (None, key):
                description.removeAttributeNS(space, key)
        for child in _children(description, namespace, name):
            description.removeChild(child)


def _add(rdf: Element, packet: bytes) -> None:
    """Adds the properties in a packet of `Provenance`: the event at the end of the history, and the tool only if the
    file names none, for that is the one that made the image first."""
    theirs = _elements(rdf)
    ours = _elements(_rdf(_parse(packet)))[0]
    history = _elements(ours)[0]
    event = _elements(_elements(history)[0])[0]
    for namespace, name in _REPLACED:
        _remove(rdf, namespace, name)
    if theirs:
        ours.setAttributeNS(_RDF, "rdf:about", theirs[0].getAttributeNS(_RDF, "about"))
    if any(d.hasAttributeNS(_XMP, "CreatorTool") or _children(d, _XMP, "CreatorTool") for d in theirs):
        ours.removeAttributeNS(_XMP, "CreatorTool")
    sequences = [s for d in theirs for h in _children(d, _MEDIA, "History") for s in _children(h, _RDF, "Seq")]
    if sequences:
        event.setAttribute("xmlns:rdf", _RDF)
        event.setAttribute("xmlns:stEvt", ours.getAttribute("xmlns:stEvt"))
        sequences[0].appendChild(event)
        ours.removeChild(history)
    else:
        _remove(rdf, _MEDIA, "History")  # of another kind than the standard's
    ours.setAttribute("xmlns:rdf", _RDF)
    rdf.appendChild(ours)


def _text_of(node: Node, depth: int = 0) -> str:
    """The node as XML. `toxml` loses line breaks in attributes, and differs between versions of Python. Raises
    ValueError beyond MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} elements within each other")
    if isinstance(node, Element):
        start = node.tagName + "".join(f" {name}={quoteattr(value)}" for name, value in node.attributes.items())
        content = "".join(_text_of(child, depth + 1) for child in node.childNodes)
        return f"<{start}>{content}</{node.tagName}>" if content else f"<{start}/>"
    if isinstance(node, Text):
        return escape(node.data, {"\r": "&#13;"})
    if isinstance(node, Comment):
        return f"<!--{node.data}-->"
    assert isinstance(node, ProcessingInstruction)
    return f"<?{node.target} {node.data}?>"

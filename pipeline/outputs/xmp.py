"""The XMP of an output: the file's own, with the restoration added to its history.

    packet = xmp_packet(metadata.xmp, provenance)

The document is kept as it is, prefixes and unknown properties included, but for what is no longer true."""

from __future__ import annotations

from xml.dom.minidom import Element, parseString
from xml.parsers.expat import ExpatError

from pipeline.outputs.provenance import Provenance

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP = "http://ns.adobe.com/xap/1.0/"
_MEDIA = "http://ns.adobe.com/xap/1.0/mm/"
_EXTENSION = ("http://ns.adobe.com/xmp/note/", "HasExtendedXMP")  # names an extension, which is not carried
_SOURCE_TYPE = ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "DigitalSourceType")
_WRAPPER = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{}\n<?xpacket end="w"?>'


def xmp_packet(packet: bytes | None, provenance: Provenance | None) -> bytes | None:
    """An XMP packet in UTF-8, or None if there is nothing to say.

    packet: the file's; one that is no XML in UTF-8, or has no RDF, counts as None.
    provenance: None to add nothing."""
    own = None if provenance is None else provenance.xmp()
    try:
        root = None if packet is None else _parse(packet)
        rdf = None if root is None else _rdf(root)
        if root is None or rdf is None:
            return own
        _remove(rdf, *_EXTENSION)
        if own is not None:
            _add(rdf, own)
        return _WRAPPER.format(root.toxml()).encode()
    except RecursionError:  # elements in elements, hundreds of levels deep
        return own


def _parse(packet: bytes) -> Element | None:
    """The document's root."""
    try:
        text = packet.decode().strip("\ufeff\0 \r\n\t")
        # no definitions of entities, which can explode
        return None if "<!" in text.replace("<!--", "") else parseString(text).documentElement
    except (UnicodeDecodeError, ExpatError):
        return None


def _rdf(root: Element) -> Element | None:
    """The element rdf:RDF: the root, or a child of it."""
    return next((e for e in (root, *_elements(root)) if (e.namespaceURI, e.localName) == (_RDF, "RDF")), None)


def _elements(parent: Element) -> list[Element]:
    return [node for node in parent.childNodes if isinstance(node, Element)]


def _children(parent: Element, namespace: str, name: str) -> list[Element]:
    return [e for e in _elements(parent) if (e.namespaceURI, e.localName) == (namespace, name)]


def _remove(rdf: Element, namespace: str, name: str) -> None:
    """Removes a property, which is an attribute or a child of a description."""
    for description in _elements(rdf):
        if description.hasAttributeNS(namespace, name):
            description.removeAttributeNS(namespace, name)
        for child in _children(description, namespace, name):
            description.removeChild(child)


def _add(rdf: Element, packet: bytes) -> None:
    """Adds the properties in a packet of `Provenance`: the event at the end of the history, and the tool only if the
    file names none, for that is the one that made the image first."""
    theirs = _elements(rdf)
    root = _parse(packet)
    assert root is not None
    ours = _elements(_elements(root)[0])[0]
    history = _elements(ours)[0]
    event = _elements(_elements(history)[0])[0]
    _remove(rdf, *_SOURCE_TYPE)
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
    ours.setAttribute("xmlns:rdf", _RDF)
    rdf.appendChild(ours)

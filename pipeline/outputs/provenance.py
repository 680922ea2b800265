"""The metadata in a restored image that record the restoration, its parameters and its certificate.

XMP (ISO 16684-1) in all formats; in PNG also text chunks, which more tools read. They do not depend on the time, so
that equal runs give equal bytes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from xml.sax.saxutils import quoteattr

PROGRAM = "jpeg-posterior"

ENHANCED = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
"""IPTC's digital source type of an image that an algorithm has changed without changing its content."""

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:stEvt="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool={program}
    Iptc4xmpExt:DigitalSourceType={enhanced}>
   <xmpMM:History>
    <rdf:Seq>
     <rdf:li stEvt:action="edited" stEvt:softwareAgent={program} stEvt:parameters={parameters}/>
    </rdf:Seq>
   </xmpMM:History>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


@cache
def program_version() -> str:
    """The installed version; `unknown` if the package is not installed."""
    try:
        return version(PROGRAM)
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Provenance:
    """How an image was made. Fields are as in `Record`, None where they do not apply.

    sample: its number, from 0.
    averaged: the number of samples that were averaged."""

    weights: str
    mode: str
    seed: int | None
    sample: int | None
    strength: float | None
    averaged: int | None
    coefficients: int
    coefficients_from: str | None
    mismatches: int | None
    excess: float | None

    @property
    def software(self) -> str:
        """The program and its version."""
        return f"{PROGRAM} {program_version()}"

    @cached_property
    def parameters(self) -> str:
        """The fields that apply, as `name=value`, separated by blanks."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        values = ((name, value) for name, value in named if value is not None)
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values
        )

    def xmp(self) -> bytes:
        """An XMP packet."""
        program, enhanced, parameters = map(quoteattr, (self.software, ENHANCED, self.parameters))
        return _XMP.format(program=program, enhanced=enhanced, parameters=parameters).encode()

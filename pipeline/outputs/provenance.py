"""What a restored image says about itself: that it was restored, by what, and how well it fits its file.

XMP (ISO 16684-1) for all formats, so that programs that show metadata show it; in PNG, whose text many tools read, also
as text. Nothing in it depends on the time, so that the same run gives the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from xml.sax.saxutils import quoteattr

PROGRAM = "jpeg-posterior"

ENHANCED = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
"""IPTC's digital source type of what an algorithm has changed without changing what is shown."""

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
    """The installed version; `unknown` where the package runs without being installed."""
    try:
        return version(PROGRAM)
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Provenance:
    """How an image came about; fields as in `Record`, None where they mean nothing. sample: its number, from 0.
    averaged: of how many samples it is the mean."""

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

    @property
    def parameters(self) -> str:
        """The fields that mean something, as `name=value` with blanks between."""
        values = ((name, value) for name, value in asdict(self).items() if value is not None)
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values
        )

    def xmp(self) -> bytes:
        """An XMP packet."""
        program, enhanced, parameters = map(quoteattr, (self.software, ENHANCED, self.parameters))
        return _XMP.format(program=program, enhanced=enhanced, parameters=parameters).encode()

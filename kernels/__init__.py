"""JPEG on tensors: five operators and a measure, alike on every device.

decode(c)                      Coefficients → RGB, as libjpeg-turbo decodes
encode(x, tables, sampling)    RGB → Coefficients, in real numbers
roundtrip(x, tables, sampling) compress and decompress, differentiable
project(x, c)                  the nearest image whose coefficients lie in c's intervals, differentiable
excess(x, c)                   how far its coefficients lie outside them, at most
project_exact(x, c)            an 8-bit image that libjpeg-turbo compresses to exactly c, and a certificate
"""

from kernels.coefficients import Coefficients, Subsampling
from kernels.operators import decode, encode, excess, project, project_exact, roundtrip
from kernels.tables import nearest_quality, quality_to_tables

__all__ = [
    "Coefficients",
    "Subsampling",
    "decode",
    "encode",
    "excess",
    "nearest_quality",
    "project",
    "project_exact",
    "quality_to_tables",
    "roundtrip",
]

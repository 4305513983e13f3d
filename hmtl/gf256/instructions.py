"""Vector instructions that multiply by constants in GF(2^8).

Multiplication by a constant is linear over GF(2). It is one instruction if the processor multiplies bytes by an 8 x 8
bit matrix (GFNI), and two table look-ups, of the low and the high four bits, if it shuffles bytes. (GFNI's byte product
has the fixed polynomial 0x11B, so it does not apply.) All paths give the same bytes.
"""

import platform
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Path:
    """A way to multiply: its instruction, and the shape of its kernel.

    Attributes:
        name: for messages.
        features: required features of the processor, in LLVM's notation.
        instruction: LLVM's intrinsic. Names with "affine" take bit matrices, the others look up.
        width: bytes per vector.
        rows: the largest block of rows that fits the registers with two vectors per row.
        inputs: rows of X per step. With two, AVX-512 adds both products in one instruction.
    """

    name: str
    features: str
    instruction: str
    width: int
    rows: int
    inputs: int = 1

    @property
    def strip(self) -> int:
        """Columns per step: two vectors, so that each coefficient is loaded once for both."""
        return 2 * self.width

    @property
    def affine(self) -> bool:
        """Whether the instruction takes bit matrices."""
        return "affine" in self.instruction


PATHS = (  # best first
    Path("GFNI-512", "+gfni,+avx512bw", "llvm.x86.vgf2p8affineqb.512", 64, rows=12, inputs=2),
    Path("GFNI-256", "+gfni,+avx2", "llvm.x86.vgf2p8affineqb.256", 32, rows=6),
    Path("AVX-512", "+avx512bw", "llvm.x86.avx512.pshuf.b.512", 64, rows=10),
    Path("AVX2", "+avx2", "llvm.x86.avx2.pshuf.b", 32, rows=4),
    Path("SSSE3", "+ssse3", "llvm.x86.ssse3.pshuf.b.128", 16, rows=4),
    Path("NEON", "+neon", "llvm.aarch64.neon.tbl1.v16i8", 16, rows=5),
)


@cache
def usable() -> tuple[Path, ...]:
    """Return the paths that this processor can run, best first."""
    import llvmlite.binding as llvm

    try:
        present = {f"+{name}" for name, available in llvm.get_host_cpu_features().items() if available}
    except RuntimeError:  # LLVM does not know the features on this system
        present = set()
    if platform.machine() in ("aarch64", "arm64"):
        present.add("+neon")  # part of the architecture, so not every system lists it
    return tuple(path for path in PATHS if present.issuperset(path.features.split(",")))

"""Lists the custom calls of a StableHLO program in a separate process.

MLIR's reader aborts its process on damaged bytes and prints their content.
"""

import json
import os
import subprocess
import sys
from typing import Any

_SECONDS = 300


def find(program: bytes) -> set[str]:
    """Returns the targets of a program's custom calls, and its operations that communicate.

    Args:
      program: Bytes of `jax.export.Exported.mlir_module_serialized`.

    Raises:
      ValueError: If it is damaged, or takes minutes to read.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", __file__],  # -P: nothing is imported from this folder
            input=program,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ValueError("its program takes too long to read") from None
    if done.returncode:
        raise ValueError("its program is damaged")
    return set(json.loads(done.stdout))


def _read(program: bytes) -> list[str]:
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    context = ir.Context()
    stablehlo.register_dialect(context)
    module = stablehlo.deserialize_portable_artifact(context, program)
    found = set()

    def note(operation: Any) -> Any:
        kind = operation.name.partition(".")[2]
        if kind == "custom_call":
            found.add(ir.StringAttr(operation.attributes["call_target_name"]).value)
        if kind in ("infeed", "outfeed", "send", "recv"):
            found.add(kind)
        return ir.WalkResult.ADVANCE

    module.operation.walk(note)
    return sorted(found)


if __name__ == "__main__":
    print(json.dumps(_read(sys.stdin.buffer.read())))

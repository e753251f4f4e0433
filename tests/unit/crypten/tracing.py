"""Runs many models through the tracing worker code, in one process: ``python -m ... FOLDER``.

Reads NAME.onnx and NAME.npy (the image) from the folder and writes NAME.out.npy, or NAME.error with
the reason. CrypTen's state is global, but a trace leaves nothing in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from radiopaque.engine.crypten.frontend import translate
from radiopaque.engine.crypten.worker.compatibility import crypten, torch
from radiopaque.engine.crypten.worker.trace import trace


def main() -> None:
    torch.set_num_threads(1)
    for model in sorted(Path(sys.argv[1]).glob("*.onnx")):
        image = np.load(model.with_suffix(".npy"))
        try:
            translated = translate(model, image.shape[0])
            program = translated.program
            constants = [translated.constants[number] for number, _ in program.constant_shapes()]
            with crypten.no_grad(), torch.no_grad():
                report = trace(program, image, constants)
        except Exception as error:
            model.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
            continue
        outputs = np.asarray(report["outputs"]).reshape(program.output_shape)
        np.save(model.with_suffix(".out.npy"), outputs)


if __name__ == "__main__":
    main()

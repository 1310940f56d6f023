"""Compiles a `DepthGraph` with Torch-TensorRT on a machine without a GPU, for several GPUs; prints the result as JSON.

    python tensorrt_without_gpu.py smalldepth fp16 128x416 1 SM75 SM80 SM86 SM89 SM120

TensorRT-RTX can build ahead of time for other GPUs. Torch-TensorRT expects a GPU and a torch with CUDA; `pretend_cuda`
answers its queries. Torch-TensorRT's lowering and converters and TensorRT's builder are the real ones.
"""

from __future__ import annotations

import json
import os
import sys
import warnings

import torch


def pretend_cuda() -> None:
    """Answer the queries that torch_tensorrt makes when it is imported, and prevent it from loading its C++ runtime."""
    torch.cuda.get_device_capability = lambda *_: (8, 9)
    torch.cuda.mem_get_info = lambda *_: (8 * 2**30, 8 * 2**30)
    torch.cuda.current_device = lambda: 0
    torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})
    is_file = os.path.isfile
    os.path.isfile = lambda path: "libtorchtrt" not in str(path) and is_file(path)
    import tensorrt_rtx_bindings

    sys.modules["tensorrt_rtx"] = tensorrt_rtx_bindings


def main() -> None:
    model, precision, size, batch, *gpus = sys.argv[1:]
    size = tuple(int(side) for side in size.split("x"))
    pretend_cuda()
    warnings.simplefilter("ignore")
    import torch_tensorrt
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter

    from fadepth_core.common.framing import Framing
    from fadepth_core.models import build_model
    from fadepth_core.runtime.backends.tensorrt import compile_graph, import_tensorrt
    from fadepth_core.runtime.graph import DepthGraph

    trt = import_tensorrt()
    found = {"tensorrt": trt.__version__, "torch_tensorrt": torch_tensorrt.__version__, "engines": {}}

    class Built(Exception):
        """Raised to end the interpreter before it loads the engine."""

    def run(interpreter):
        interpreter._construct_trt_network_def()
        network = interpreter.ctx.net
        found["layers"] = network.num_layers
        for index in range(network.num_outputs):
            found.setdefault("outputs", []).append(str(network.get_output(index).dtype))
        for gpu in gpus:
            config = interpreter._populate_trt_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, gpu), 0)
            plan = interpreter.builder.build_serialized_network(network, config)
            found["engines"][gpu] = None if plan is None else plan.nbytes
        raise Built

    _TRTInterpreter.TRTInterpreter.run = run
    torch.manual_seed(0)
    network = build_model(model).eval().fuse()
    framing = Framing.plan(size, (128, 416))
    graph = DepthGraph(network, framing, {"fp16": torch.float16, "fp32": torch.float32}[precision]).eval()
    try:
        compile_graph(graph, framing.camera_size, int(batch))
    except Exception as error:
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        if not isinstance(causes[-1], Built):
            raise
    print(json.dumps(found))


if __name__ == "__main__":
    main()

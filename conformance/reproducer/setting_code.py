"""The code that reads a setting of the process, by the setting's name in messages."""

from __future__ import annotations

SETTING_CODE = {
    "the default dtype": "torch.get_default_dtype()",
    "the default device": "torch.get_default_device()",
    "grad mode": "torch.is_grad_enabled()",
    "inference mode": "torch.is_inference_mode_enabled()",
    "autocast": 'torch.is_autocast_enabled("cpu")',
    "anomaly detection": "torch.is_anomaly_enabled()",
    "the precision of float32 products": "torch.get_float32_matmul_precision()",
    "TF32 in cuDNN": "torch.backends.cudnn.allow_tf32",
    "reduced precision in float16 sums": "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "reduced precision in bfloat16 sums": "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuDNN's benchmarking": "torch.backends.cudnn.benchmark",
    "cuDNN's determinism": "torch.backends.cudnn.deterministic",
    "deterministic algorithms": "torch.get_deterministic_debug_mode()",
    "the filling of uninitialised memory": "torch.utils.deterministic.fill_uninitialized_memory",
    "the number of threads": "torch.get_num_threads()",
    "the flushing of subnormals": "sys.float_info.min / 2 == 0",
    "NumPy's error handling": "np.geterr()",
    "the recursion limit": "sys.getrecursionlimit()",
    "the working directory": "os.getcwd()",
    "the environment": "dict(os.environ)",
    "the filters of warnings": "list(warnings.filters)",
    "torch's random state": "torch.get_rng_state().tolist()",
    "NumPy's random state": "repr(np.random.get_state())",
    "Python's random state": "random.getstate()",
}

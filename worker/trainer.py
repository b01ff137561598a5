"""The trainer: one process that trains one adapter and reports facts.

    python -m worker.trainer CONFIG.json [--parent PID]

CONFIG.json is a `worker.loop.config.TrainerConfig`, written by `worker.loop.config_json.write_config`. On Linux the
process is killed when the thread that started it ends; with --parent it also ends at once if it was orphaned before it
could ask for that.

Standard output carries facts and nothing else: one JSON object a line, flushed. Logs and tracebacks go to standard
error.

    {"fact": "phase", "name": "reading" | "encoding" | "loading" | "training" | "exporting"}
    {"fact": "dataset", "pictures": 8, "bucket_sizes": {"512x512": 5, ...}, "captions": [first five], "skipped": [...]}
    {"fact": "warning", "message": "..."}                     clamped, enlarged or skipped; training goes on
    {"fact": "encoded", "done": 3, "total": 16}               pictures, captions and prompts, from the cache or anew
    {"fact": "step", "step": 1, "steps": 100, "loss": 0.12, "lr": 1e-4, "seconds": 0.3, "peak_bytes": 5573000000 | null}
    {"fact": "sample", "step": 50, "path": "samples/step-000050-0.png"}
    {"fact": "checkpoint", "step": 50, "path": "checkpoints/step-000050"}

and exactly one of these, last:

    {"fact": "finished", "steps": 100, "loss_first": 0.14, "loss_last": 0.11, "files": ["lora.safetensors", ...]}
    {"fact": "stopped", "step": 57, "path": "checkpoints/step-000057" | null}     after SIGTERM: go on from path
    {"fact": "failed", "reason": "dataset_invalid" | ..., "message": "..."}       the only one with exit code 1, not 0

Steps count from 1. Paths are relative to the output folder. `peak_bytes` is the most GPU memory allocated up to that
step, null on a CPU. `loss_first` and `loss_last` are means over the first and last tenth of the steps, at least one.
`path` of `stopped` is null when no step had been trained yet. `reason` is the TrainerError's, or out_of_memory_gpu,
out_of_memory_host, or crashed. A process that ends without one of the last three was killed.
"""

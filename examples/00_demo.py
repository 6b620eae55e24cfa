"""A whole run in seconds, SIMULATED: no model, no account, no download. `dspy-dlpo demo` does the same.

python examples/00_demo.py
"""

from dspy_dlpo.benchmarks.demo import demo

if __name__ == "__main__":
    demo(log_dir="runs/demo")

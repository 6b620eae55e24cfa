from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from dspy_dlpo.runtime.cluster import RayExecutor


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayExecutor]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: the extra `ray`.")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    with RayExecutor(2, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}}) as executor:
        yield executor
    ray.shutdown()

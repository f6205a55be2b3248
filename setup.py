"""Only what pyproject.toml cannot say: cffi compiles kvm_cffi's binding when the package is built."""

from setuptools import setup

setup(cffi_modules=["kvm_cffi/_build.py:ffibuilder"])

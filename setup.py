"""What pyproject.toml cannot say: the folder tune_spaces is installed inside the package, as idc_ray/tune_spaces."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["idc_ray*"]), "idc_ray.tune_spaces"],
    package_dir={"idc_ray.tune_spaces": "tune_spaces"},
    package_data={
        "idc_ray": ["py.typed"],
        "idc_ray.degradation": ["presets/*"],
        "idc_ray.models": ["bundled/*"],  # the small teachers of the default job
        "idc_ray.report": ["templates/*", "templates/charts/*"],
        "idc_ray.tune_spaces": ["*.yaml"],
    },
)

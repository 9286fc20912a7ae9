"""Package metadata from settings.ini (nbdev 3 reads pyproject.toml instead and leaves that file to us)."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters="=", inline_comment_prefixes=None)
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(key: str) -> list[str]:
    return settings[key].split("\n")[1:]


setup(
    name=settings["lib_name"],
    version=re.search(r'__version__ = "(.+)"', (here / "tumorseg/__init__.py").read_text())[1],
    description=settings["description"],
    author=settings["author"],
    license=settings["license"],
    keywords=settings["keywords"],
    url=f"https://github.com/{settings['user']}/{settings['repo']}",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["tumorseg*"]),
    package_data={"tumorseg": ["*.pyi", "*.html", "py.typed"]},
    python_requires=f">={settings['min_python']}",
    install_requires=lines("requirements"),
    extras_require={"dev": lines("dev_requirements")},
    entry_points={"console_scripts": ["tumorseg = tumorseg.cli:main"]},
)

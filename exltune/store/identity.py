"""placeholder"""

from importlib.metadata import version


def scoring_versions(engine: str) -> str:
    """x"""
    return ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers")) + ", score 1"

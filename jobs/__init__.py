if not __name__.startswith("rlflow."):
    raise ImportError(f"import rlflow.{__name__}, not {__name__}: one module must not be loaded under two names")

"""The old place of `qzoo.sharing.convert`, kept for programs that import it from here."""

from .sharing.convert import check_model, convert_checkpoint, describe, read_model, state_dict_bytes

__all__ = ["check_model", "convert_checkpoint", "describe", "read_model", "state_dict_bytes"]

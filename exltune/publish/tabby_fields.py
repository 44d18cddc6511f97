"""TabbyAPI's pinned version, and the names that it knows."""

from __future__ import annotations

#: 2026-08-13; the Dockerfile builds this version, and exltune's keys and requests are of it.
TABBYAPI_COMMIT = "e632af41eba68abeadc3437c62674360f2f8cbf1"

#: Source: TabbyAPI, endpoints/OAI/utils/tools.py (ALL_TOOLCALL_FORMATS); another name is dropped with a warning.
TOOL_FORMATS = frozenset(
    {
        *("deepseek_v4", "dsv4", "gemma4", "glm4_5", "glm4_6", "glm4_7", "harmony", "hy3", "hy_v3", "laguna"),
        *("poolside_v1", "minimax_m2", "minimax_m2_1", "minimax_m2_5", "mistral_old", "mistral", "muse_glimmer"),
        *("glimmer", "qwen3_coder", "qwen3_5", "step3_5", "step3_7"),
    }
)

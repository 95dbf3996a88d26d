"""The paper's tables and figures beside measurements of today's models."""

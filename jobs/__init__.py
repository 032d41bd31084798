"""Short entry points for what people do with traces."""

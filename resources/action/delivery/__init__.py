"""Action delivery: what was decided and rendered reaches the enterprise's systems, and every attempt leaves a receipt.

Put a `model.Delivery` into the queue with `queue.enqueue`, in the transaction that decided on it. A `worker.Worker`
takes what is due, hands it to the adapter of its endpoint, and records receipt, evidence and event in one transaction.
Guarantees, formats and failure modes: docs/delivery.md.
"""

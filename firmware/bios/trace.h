/* Around each service: see trace.c. */

void trace_call(struct regs *r);
void trace_return(struct regs *r);

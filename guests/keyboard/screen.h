/* Output: every character to the VGA text screen and to the serial port. */
#ifndef SCREEN_H
#define SCREEN_H

void screen_init(void);
void screen_cursor(int on);
void kputc(char c);
void kputs(const char *text);

#endif

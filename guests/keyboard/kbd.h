/* The keyboard driver. The lower half (kbd_handler) runs in the interrupt, turns scan codes into characters and puts them
   into the buffer; the upper half (kgetc, kgets) takes them out. What they share is struct kbd. */
#ifndef KBD_H
#define KBD_H

#include <stdint.h>

#define KBD_SIZE 128

#define CTRL_C 3                 /* kills what runs */
#define CTRL_D 4                 /* end of file */

#define KGETS_EOF (-1)
#define KGETS_KILLED (-2)

/* One keyboard: there can be several. */
struct kbd {
    uint16_t base;               /* data port; status and command are at base + 4 */
    uint8_t buf[KBD_SIZE];       /* characters, first in, first out */
    volatile int head;           /* where the next one goes in */
    volatile int tail;           /* where the next one comes out */
    volatile int data;           /* how many are in it */
    volatile int room;           /* how many more fit */
    volatile int killed;         /* Ctrl-C was pressed */
    unsigned dropped;            /* characters that found no room */

    uint8_t shift;               /* the shift keys that are down, a bit each */
    uint8_t ctrl;                /* the control keys that are down, a bit each */
    uint8_t caps;                /* Caps Lock is on */
    uint8_t extended;            /* the last byte was E0 */
    uint8_t skip;                /* bytes that are still to come of E1 xx xx */
};

void kbd_init(struct kbd *kp, uint16_t base);
void kbd_handler(struct kbd *kp);
void kbd_input(struct kbd *kp, uint8_t c);
int kgetc(struct kbd *kp);
int kgets(struct kbd *kp, char *line, int size);

#endif
